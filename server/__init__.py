"""kas: accepts tunnels from agents and requests from clients, and brings the two together."""
