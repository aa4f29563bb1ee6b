"""Large files in a folder or in an object store, and products whose files lie in one."""
