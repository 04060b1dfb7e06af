"""What other programs load: plug-ins for libraries that know nothing of these networks."""
