"""Programs that measure, each with a short form as a slow test."""
