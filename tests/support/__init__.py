"""What tests and audits share: cohorts, liars, forged transcripts, small studies and federations."""
