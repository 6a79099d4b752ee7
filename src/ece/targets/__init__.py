"""What the edited layers should write: target hidden states z (Eq. 11-13)."""
