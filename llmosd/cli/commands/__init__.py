"""The commands of `llmos`, one file per subject.

Each file has `add_commands`, which adds the options of its commands to the command line, and the commands: functions
that take a connected client and the parsed options, and return an exit code. A command writes only its result to
standard output; everything else goes to standard error.
"""
