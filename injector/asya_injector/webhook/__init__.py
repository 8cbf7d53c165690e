"""The server in the cluster: answers admission reviews and keeps the runtime ConfigMaps."""
