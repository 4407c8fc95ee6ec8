"""How good reward models and policies are: best-of-N over pools of samples, with intervals and figures."""
