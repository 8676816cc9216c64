//! What all certificates of ours have in common.

use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, DnType, SanType, SerialNumber};

use super::{DOMAIN, PkiError, shortened};

/// How far a certificate reaches back, for devices whose clock is a little behind.
const BACKDATE: Duration = Duration::from_secs(5 * 60);

/// Valid from a little before `now` until `not_after`; no names yet.
pub(super) fn params(now: u64, not_after: u64, serial: &SerialNumber) -> CertificateParams {
    let mut params = CertificateParams::default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_millis(now.saturating_sub(millis(BACKDATE)));
    params.not_after = epoch + Duration::from_millis(not_after);
    params.serial_number = Some(serial.clone());
    params.use_authority_key_identifier_extension = true;
    params
}

pub(super) fn set_subject(params: &mut CertificateParams, common_name: &str) {
    params.distinguished_name = DistinguishedName::new();
    // RFC 5280 allows 64 characters and a node's full name has 68, so the domain is left out. Nothing of ours reads it.
    let cut = common_name.strip_suffix(&format!(".{DOMAIN}")).unwrap_or(common_name);
    params.distinguished_name.push(DnType::CommonName, cut);
}

pub(super) fn san(name: &str) -> Result<SanType, PkiError> {
    let bad = || PkiError::BadName { name: shortened(name) };
    // Also refuses what is no DNS name at all.
    rustls_pki_types::DnsName::try_from(name).map_err(|_| bad())?;
    Ok(SanType::DnsName(name.try_into().map_err(|_| bad())?))
}

pub(super) fn new_serial() -> SerialNumber {
    let mut bytes = crate::rng::secret_bytes::<16>();
    // Positive, and 16 bytes long whatever the dice say (RFC 5280 section 4.1.2.2).
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
