"""What only a notebook needs: widgets, plots, exercises that check themselves."""
