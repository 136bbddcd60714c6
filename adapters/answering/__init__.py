"""What every harness's model does alike: arguments, requests, answers, failures. Knows no harness."""
