"""Differentially private federated training of medical image segmentation, through secure aggregation.

Import the room that you need: `fedseg.study`, `fedseg.data`, `fedseg.simulate`, `fedseg.infer`. Nothing is loaded here,
because torch and MONAI take seconds.
"""
