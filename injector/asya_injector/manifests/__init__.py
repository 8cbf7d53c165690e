"""Files in, files out: the injection applied to manifests, with comments and order kept."""
