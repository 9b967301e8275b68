"""The page. Nothing here knows torch: the engine works in a process of its own."""
