"""What a run tells while it trains, and where that goes; read entry.py first."""
