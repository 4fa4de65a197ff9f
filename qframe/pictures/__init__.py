"""Decodes picture files into pixels and back, decides to which size they are resized, and draws contact sheets."""
