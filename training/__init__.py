"""How the models in the box were made: corpus, tokenizer, mixture, training, export and gates."""
