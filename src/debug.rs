//! `Debug` for types with parameters, such as services and closures, that need not be `Debug`. A derive requires it.

/// Implements [`Debug`](std::fmt::Debug) for a type, with the parameters as after `impl`, and a list of the fields:
/// `field` shows the field, `field: Type` the name of that type, and `name = |this| ..` an expression. A `..` at the
/// end means that more fields exist. `(Type)` in place of the list shows a tuple with the name of that type. With
/// `in module`, that module is a part of the shown name.
macro_rules! impl_debug {
    (
        $type:ident $(<$($param:ident $(: $bound:path)?),+>)? $(in $module:ident)? $(where [$($where:tt)+])?
        { $($list:tt)* }
    ) => {
        impl $(<$($param $(: $bound)?),+>)? std::fmt::Debug for $type $(<$($param),+>)? $(where $($where)+)? {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let name = concat!($(stringify!($module), "::",)? stringify!($type));
                $crate::debug::impl_debug!(@list self f.debug_struct(name), $($list)*)
            }
        }
    };
    ($type:ident<$($param:ident),+>($shown:ty)) => {
        impl<$($param),+> std::fmt::Debug for $type<$($param),+> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($type)).field(&std::any::type_name::<$shown>()).finish()
            }
        }
    };
    (@list $self:ident $to:expr, $($field:ident $(: $type:ty)? $(= |$this:ident| $value:expr)?,)* ..) => {
        $to $(.field(
            stringify!($field),
            &$crate::debug::impl_debug!(@value $self $field $(: $type)? $(= |$this| $value)?),
        ))* .finish_non_exhaustive()
    };
    (@list $self:ident $to:expr, $($field:ident $(: $type:ty)? $(= |$this:ident| $value:expr)?),* $(,)?) => {
        $to $(.field(
            stringify!($field),
            &$crate::debug::impl_debug!(@value $self $field $(: $type)? $(= |$this| $value)?),
        ))* .finish()
    };
    (@value $self:ident $field:ident) => {
        $self.$field
    };
    (@value $self:ident $field:ident: $type:ty) => {
        std::any::type_name::<$type>()
    };
    (@value $self:ident $field:ident = |$this:ident| $value:expr) => {{
        let $this = $self;
        $value
    }};
}

pub(crate) use impl_debug;
