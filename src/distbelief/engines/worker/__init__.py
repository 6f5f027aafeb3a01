"""A worker: the process of one replica, on whatever machine it is, and the socket by which it is spoken to."""
