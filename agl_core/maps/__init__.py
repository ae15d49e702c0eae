"""Maps that are made of predictions: true orthoimages, and pictures for the eye."""
