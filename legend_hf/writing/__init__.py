"""What a model writes: questions become answers, begun responses go on, resumably. Knows no directions and no pairs."""
