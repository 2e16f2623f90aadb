"""The parts of a variational autoencoder: priors, decoders, encoders, and the VAE made of them."""
