"""Fine-tune, prove, talk to and ship the GLM family."""
