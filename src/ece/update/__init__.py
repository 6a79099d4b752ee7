"""How the weights are solved for: key statistics, the closed form (Eq. 4, 14), history."""
