"""What a normalization would do to a network's conditioning and training, before anything is changed."""
