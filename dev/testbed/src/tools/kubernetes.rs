//! Finds or builds the programs of a control plane.
