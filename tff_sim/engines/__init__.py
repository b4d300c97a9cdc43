"""What carries out a round: TFF's worker (`engine`, `shared`), or device processes and TFF's server part (`device`)."""
