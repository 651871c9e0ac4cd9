"""What an interrupted training goes on from."""
