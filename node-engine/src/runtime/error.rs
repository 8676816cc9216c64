//! What can go wrong in a runtime, with a stable code for each.

use roble_core::ids::InstanceId;
use roble_core::status::Reason;
use roble_core::version::Version;

/// Why a runtime could not do what it was asked. `detail` is the text of the outside's error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// The text is not an image reference.
    #[error("`{reference}` is not an image reference: {detail}")]
    BadReference {
        /// As given.
        reference: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Neither this machine nor the registry has it.
    #[error("image {reference} not found: {detail}")]
    ImageNotFound {
        /// Normalised.
        reference: String,
        /// Where was looked.
        detail: String,
    },
    /// The image has no manifest for this machine.
    #[error("image {reference} is for {offered}, this machine is {machine}")]
    WrongArchitecture {
        /// Normalised.
        reference: String,
        /// What the image is for.
        offered: String,
        /// What this machine is.
        machine: String,
    },
    /// The image cannot be used: damaged, too large, of an unknown format.
    #[error("image {reference} cannot be used: {detail}")]
    BadImage {
        /// Normalised.
        reference: String,
        /// Why.
        detail: String,
    },
    /// The registry wants other credentials.
    #[error("registry {registry} refuses access to {reference}: {detail}")]
    RegistryUnauthorized {
        /// Host and port.
        registry: String,
        /// Normalised.
        reference: String,
        /// The registry's answer.
        detail: String,
    },
    /// The registry does not answer, or answers with an error of its own.
    #[error("registry {registry} unreachable: {detail}")]
    RegistryUnreachable {
        /// Host and port.
        registry: String,
        /// What happened.
        detail: String,
    },
    /// The content is not what the digest promised.
    #[error("{what} has digest {found}, expected {expected}")]
    DigestMismatch {
        /// Image, layer, ...
        what: String,
        /// As pinned.
        expected: String,
        /// As found.
        found: String,
    },
    /// A higher version of the instance is already there.
    #[error("instance {instance} is at version {present}, order {ordered} is outdated")]
    Outdated {
        /// Which instance.
        instance: InstanceId,
        /// What is there.
        present: Version,
        /// What was asked.
        ordered: Version,
    },
    /// The spec asks for what this node does not give, such as root under the profile `restricted`.
    #[error("instance {instance} refused: {detail}")]
    Refused {
        /// Which instance.
        instance: InstanceId,
        /// What is refused.
        detail: String,
    },
    /// The container could not be made or started, e.g. because its command does not exist.
    #[error("create container of instance {instance}: {detail}")]
    CreateFailed {
        /// Which instance.
        instance: InstanceId,
        /// The runtime's answer.
        detail: String,
    },
    /// Something of the instance could not be removed.
    #[error("remove instance {instance}: {detail}")]
    RemoveFailed {
        /// Which instance.
        instance: InstanceId,
        /// What remains and why.
        detail: String,
    },
    /// Nothing is known of the instance.
    #[error("no container of instance {instance}")]
    NoSuchInstance {
        /// Which instance.
        instance: InstanceId,
    },
    /// The runtime does not answer.
    #[error("container runtime unavailable: {detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// A file of the node's state directory could not be read or written (disk full, damaged).
    #[error("{what}: {detail}")]
    State {
        /// What was tried.
        what: String,
        /// What happened.
        detail: String,
    },
}

impl RuntimeError {
    /// Stable code, kebab-case.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadReference { .. } => "image-bad-reference",
            Self::ImageNotFound { .. } => "image-not-found",
            Self::WrongArchitecture { .. } => "image-wrong-architecture",
            Self::BadImage { .. } => "image-bad",
            Self::RegistryUnauthorized { .. } => "registry-unauthorized",
            Self::RegistryUnreachable { .. } => "registry-unreachable",
            Self::DigestMismatch { .. } => "digest-mismatch",
            Self::Outdated { .. } => "outdated",
            Self::Refused { .. } => "security-refused",
            Self::CreateFailed { .. } => "create-failed",
            Self::RemoveFailed { .. } => "remove-failed",
            Self::NoSuchInstance { .. } => "no-such-instance",
            Self::Unavailable { .. } => "runtime-unavailable",
            Self::State { .. } => "state-directory",
        }
    }

    /// Whether the same call may succeed later without anyone changing the order, the image or the credentials.
    pub const fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::RegistryUnreachable { .. }
                | Self::CreateFailed { .. }
                | Self::RemoveFailed { .. }
                | Self::Unavailable { .. }
                | Self::State { .. }
        )
    }

    /// For the status of the instance.
    pub fn reason(&self) -> Reason {
        Reason::new(self.code(), self.to_string())
    }
}

impl From<&RuntimeError> for Reason {
    fn from(error: &RuntimeError) -> Self {
        error.reason()
    }
}

impl From<RuntimeError> for Reason {
    fn from(error: RuntimeError) -> Self {
        error.reason()
    }
}
