//! Every layer keeps to the laws of a service, and so does the recommended stack.

use std::time::Duration;

use ziggurat::{testing::laws, timeout::TimeoutLayer};

const SECOND: Duration = Duration::from_secs(1);

/// A test for each layer, named as its module: a line that makes a layer value as tight as it can be.
macro_rules! keeps_to_the_laws {
    ($($name:ident: $laws:expr;)*) => {$(
        #[test]
        fn $name() {
            $laws.check();
        }
    )*};
}

keeps_to_the_laws! {
    timeout: laws(|| TimeoutLayer::new(SECOND));
}
