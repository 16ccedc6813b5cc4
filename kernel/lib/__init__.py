"""Small modules for all rooms: validation, failpoints, lock files, machine, timer, units. They never import a room."""
