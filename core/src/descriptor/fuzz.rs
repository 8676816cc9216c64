//! What a fuzzer, and the test over the stored corpus, calls.

use super::{Form, Format, parse, to_native_yaml};

/// Parses `data` in every format and checks what holds for every input.
///
/// # Panics
/// If one of these does not hold: a refusal has at least one mistake; what is accepted prints as native YAML that
/// reads back as the same applications; the same bytes give the same answer.
pub fn fuzz_descriptor(data: &[u8]) {
    for format in [Format::Json, Format::Yaml, Format::Auto] {
        let answer = parse(data, format);
        assert_eq!(answer, parse(data, format), "the same bytes give the same answer");
        match answer {
            Err(mistakes) => assert!(!mistakes.is_empty(), "a refusal says why"),
            Ok(parsed) => {
                let yaml = to_native_yaml(&parsed.descriptor);
                // Quotes and escapes make the printed text longer than the one that was read.
                if yaml.len() > super::MAX_BYTES {
                    continue;
                }
                let again = match parse(yaml.as_bytes(), Format::Yaml) {
                    Ok(again) => again.descriptor,
                    Err(mistakes) => panic!("what is printed reads back, but: {mistakes:#?}\n{yaml}"),
                };
                let mut expected = parsed.descriptor;
                expected.form = Form::Native;
                expected.customer = None;
                expected
                    .applications
                    .iter_mut()
                    .for_each(|application| application.requested_id = None);
                assert_eq!(again, expected, "what is printed reads back as the same");
            }
        }
    }
}
