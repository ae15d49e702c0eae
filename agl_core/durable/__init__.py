"""What lets a run survive: complete states, who may write them, when to stop, and the proof that nothing was lost."""
