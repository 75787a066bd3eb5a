"""tunnel: carrying HTTP between two processes. It knows no Kubernetes, no users and no configuration files."""
