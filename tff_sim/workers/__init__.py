"""TFF's worker processes: started here (`local`), or on other machines (`remote`), and kept from the network."""
