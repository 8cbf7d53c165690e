"""YAML and JSON text: read as Kubernetes reads it, and edited so that the rest stays as typed."""
