//! Build identity: which Sifr this is.
