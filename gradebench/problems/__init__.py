"""The objective J and its gradients: language models, factorised decisions, enumerable test beds."""
