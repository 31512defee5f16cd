;; The filter of the demo: it adds a header to each response. wat2wasm makes a module of it; other languages have SDKs.
(module
  (import "env" "proxy_add_header_map_value" (func $add (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 1024) "resp-header-demo")
  (data (i32.const 2048) "added by our filter")
  ;; The host puts what it hands over here, one thing at a time. This filter reads none of it.
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    ;; 2 are the headers of the response; then where name and value are, and how long.
    (drop (call $add (i32.const 2) (i32.const 1024) (i32.const 16) (i32.const 2048) (i32.const 19)))
    (i32.const 0)))
