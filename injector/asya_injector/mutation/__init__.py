"""Pod in, pod out: the injection as pure functions on plain data, without I/O."""
