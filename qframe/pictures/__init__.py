"""Pictures: the sizes they are brought to, reading files into pixels and back, and contact sheets."""
