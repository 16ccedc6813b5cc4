"""Tools: functions that run in worker threads, each with a limit on concurrent calls."""
