//! The marks of overlayfs, made by hand.
