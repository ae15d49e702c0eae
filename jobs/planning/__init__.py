"""When a run will end, and what interruptions will cost."""
