"""What every harness's proof of preservation does alike: arms on disk, what ``generate`` was given, planted faults."""
