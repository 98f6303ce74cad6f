"""A direction becomes columns. Knows neither training nor publishing."""
