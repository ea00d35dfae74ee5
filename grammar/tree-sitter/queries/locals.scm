(source_file) @local.scope
(let name: (name) @local.definition)
(variable) @local.reference
; a whole target that is called like a list means the list
(target . (module) @local.reference .)
