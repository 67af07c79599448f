//! What an flist says about running its content: the OCI image configuration's execution part.
//!
//! Owns: the fields of OCI image-spec `config.md` that a micro VM honours.
//! Refuses: nothing; unknown fields of a foreign configuration are ignored, as the spec asks.

use serde::{Deserialize, Serialize};

/// Execution parameters of an image (OCI image-spec v1.1, `config.md`, object `config`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// `NAME=value`, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// A signal's name (`SIGTERM`) or number; empty means SIGTERM.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}
