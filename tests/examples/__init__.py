"""The demo, its application and its sidecar."""
