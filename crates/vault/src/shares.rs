//! A secret in shares, of which some number gives it back and fewer say nothing (Shamir, 1979).
//!
//! Owns: the arithmetic in GF(2^8), by the polynomial of AES. Each step takes the same time whatever the secret.
//! Refuses: telling good shares from bad ones: [`crate::recovery`] knows what the secret must be.

use zeroize::Zeroizing;

use crate::{NoRandom, Secret};

/// One share: the place of a polynomial for each byte of the secret, and its values there.
#[derive(Clone, PartialEq, Eq)]
pub struct Share {
    /// Not zero: there lies the secret.
    pub number: u8,
    pub values: Secret,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Share {}", self.number)
    }
}

/// `count` shares, any `need` of which are the secret.
pub fn split(secret: &Secret, count: u8, need: u8) -> Result<Vec<Share>, NoRandom> {
    // Coefficients of x, x², ...: one polynomial for each byte.
    let mut above = Vec::new();
    for _ in 1..need {
        above.push(crate::draw()?);
    }
    let share = |number: u8| {
        let mut values = Secret::default();
        for (at, value) in values.iter_mut().enumerate() {
            // Horner, from the highest power down to the secret.
            let high = above.iter().rev().map(|power| power[at]);
            *value = high.fold(0, |sum, coefficient| times(sum ^ coefficient, number));
            *value ^= secret[at];
        }
        Share { number, values }
    };
    Ok((1..=count).map(share).collect())
}

/// The secret of shares that are enough and of one set; else a number that says nothing. `None` where two shares have
/// the same number, or there is none, or one has the number zero.
pub fn combine(shares: &[Share]) -> Option<Secret> {
    let numbers: Vec<u8> = shares.iter().map(|share| share.number).collect();
    let twice = (1..numbers.len()).any(|at| numbers[..at].contains(&numbers[at]));
    if numbers.is_empty() || numbers.contains(&0) || twice {
        return None;
    }
    let mut secret = Secret::default();
    for share in shares {
        // Lagrange's polynomial of this share, at zero.
        let others = numbers.iter().filter(|number| **number != share.number);
        let weight = others.fold(1, |product, other| {
            times(product, times(*other, inverse(other ^ share.number)))
        });
        for (byte, value) in secret.iter_mut().zip(share.values.iter()) {
            *byte ^= times(weight, *value);
        }
    }
    Some(secret)
}

/// Product in GF(2^8) without a branch or a table that depends on its factors.
fn times(a: u8, b: u8) -> u8 {
    let mut terms = Zeroizing::new((a, 0u8));
    for bit in 0..8 {
        let (power, sum) = *terms;
        let wanted = 0u8.wrapping_sub(b >> bit & 1);
        let carry = 0u8.wrapping_sub(power >> 7);
        *terms = (power << 1 ^ carry & 0x1b, sum ^ power & wanted);
    }
    terms.1
}

/// a^254, which is 1/a.
fn inverse(a: u8) -> u8 {
    let mut square = a;
    let mut product = 1;
    for _ in 0..7 {
        square = times(square, square);
        product = times(product, square);
    }
    product
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    fn secret(bytes: [u8; 32]) -> Secret {
        Secret::new(bytes)
    }

    #[test]
    fn the_field_is_that_of_aes() {
        // FIPS 197, 4.2 and 4.2.1.
        assert_eq!(times(0x57, 0x83), 0xc1);
        assert_eq!(times(0x57, 0x13), 0xfe);
        for a in 1..=255 {
            assert_eq!(times(a, inverse(a)), 1, "{a}");
        }
    }

    proptest! {
        #[test]
        fn enough_shares_are_the_secret_whichever_they_are(bytes: [u8; 32], count in 1u8..9, need in 1u8..9, order: [u8; 8]) {
            let need = need.min(count);
            let mut shares = split(&secret(bytes), count, need).expect("shares");
            shares.sort_by_key(|share| order[usize::from(share.number) - 1]);
            let enough = &shares[..usize::from(need)];
            assert_eq!(combine(enough), Some(secret(bytes)));
            assert_eq!(combine(&shares), Some(secret(bytes)));
        }

        #[test]
        fn fewer_shares_fit_every_secret(bytes: [u8; 32], other: [u8; 32], need in 2u8..6) {
            // For any other secret there is a last share that would give it: so these say nothing of which it is.
            let shares = split(&secret(bytes), need, need).expect("shares");
            let few = &shares[1..];
            let forged = |byte: u8| {
                let forged = Share { number: 1, values: secret([byte; 32]) };
                combine(&[&[forged], few].concat()).expect("a number")
            };
            for (at, wanted) in other.iter().enumerate() {
                assert!((0..=255).any(|byte| forged(byte)[at] == *wanted));
            }
        }

        #[test]
        fn shares_of_which_two_have_one_number_are_refused(values: [u8; 32], number: u8) {
            let share = Share { number, values: secret(values) };
            assert_eq!(combine(&[share.clone(), share]), None);
        }

        #[test]
        fn any_one_wrong_share_gives_another_secret(bytes: [u8; 32], wrong in any::<u8>(), at in 0usize..32) {
            let mut shares = split(&secret(bytes), 3, 3).expect("shares");
            shares[1].values[at] ^= wrong.max(1);
            assert_ne!(combine(&shares), Some(secret(bytes)));
        }
    }

    #[test]
    fn no_shares_and_the_place_of_the_secret_itself_are_refused() {
        assert_eq!(combine(&[]), None);
        let zero = Share {
            number: 0,
            values: secret([1; 32]),
        };
        assert_eq!(combine(&[zero]), None);
    }
}
