"""A small make-believe cluster for those who have none at hand. Says "sandbox" wherever it shows."""
