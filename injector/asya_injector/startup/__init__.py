"""How the runtime starts with a container's own programs: command, hooks and probe. No I/O."""
