"""C declarations of the s2n-tls functions in use.

Taken from `api/s2n.h` of github aws/s2n-tls as shipped in awscrt 0.38.1 (August 2026).
Enums are declared as int, opaque structs by name: what the ABI needs, no more.
"""

CDEF = """
struct s2n_config;
struct s2n_connection;
struct s2n_cert;
struct s2n_cert_chain_and_key;
struct s2n_async_pkey_op;
struct s2n_session_ticket;
struct s2n_cert_validation_info;
struct s2n_client_hello;

int s2n_init(void);
int s2n_disable_atexit(void);
int s2n_get_fips_mode(int *fips_mode);
unsigned long s2n_get_openssl_version(void);

int *s2n_errno_location(void);
int s2n_error_get_type(int error);
const char *s2n_strerror(int error, const char *lang);
const char *s2n_strerror_name(int error);
const char *s2n_strerror_debug(int error, const char *lang);

struct s2n_config *s2n_config_new_minimal(void);
int s2n_config_free(struct s2n_config *config);
int s2n_config_set_cipher_preferences(struct s2n_config *config, const char *version);
int s2n_config_set_send_buffer_size(struct s2n_config *config, uint32_t size);
int s2n_config_disable_x509_verification(struct s2n_config *config);
int s2n_config_set_async_pkey_callback(struct s2n_config *config, void *fn);
int s2n_config_append_protocol_preference(
    struct s2n_config *config, const uint8_t *protocol, uint8_t size);
int s2n_config_set_client_hello_cb(struct s2n_config *config, void *fn, void *data);
int s2n_config_set_client_auth_type(struct s2n_config *config, int type);
int s2n_config_add_pem_to_trust_store(struct s2n_config *config, const char *pem);
int s2n_config_set_verify_host_callback(struct s2n_config *config, void *fn, void *data);
int s2n_config_set_cert_validation_cb(struct s2n_config *config, void *fn, void *data);
int s2n_cert_validation_accept(struct s2n_cert_validation_info *info);
int s2n_cert_validation_reject(struct s2n_cert_validation_info *info);
int s2n_config_set_max_blinding_delay(struct s2n_config *config, uint32_t seconds);
int s2n_config_set_session_tickets_onoff(struct s2n_config *config, uint8_t enabled);
int s2n_config_set_session_state_lifetime(struct s2n_config *config, uint64_t seconds);
int s2n_config_set_ticket_encrypt_decrypt_key_lifetime(struct s2n_config *config, uint64_t seconds);
int s2n_config_set_ticket_decrypt_key_lifetime(struct s2n_config *config, uint64_t seconds);
int s2n_config_require_ticket_forward_secrecy(struct s2n_config *config, bool enabled);
int s2n_config_add_ticket_crypto_key(
    struct s2n_config *config, const uint8_t *name, uint32_t name_size,
    const uint8_t *key, uint32_t key_size, uint64_t introduced);

int s2n_config_set_session_ticket_cb(struct s2n_config *config, void *fn, void *data);
int s2n_session_ticket_get_data_len(struct s2n_session_ticket *ticket, size_t *size);
int s2n_session_ticket_get_data(struct s2n_session_ticket *ticket, size_t most, uint8_t *data);

struct s2n_cert_chain_and_key *s2n_cert_chain_and_key_new(void);
int s2n_cert_chain_and_key_load_public_pem_bytes(
    struct s2n_cert_chain_and_key *chain, const uint8_t *pem, uint32_t size);
int s2n_cert_chain_and_key_set_ocsp_data(
    struct s2n_cert_chain_and_key *chain, const uint8_t *data, uint32_t size);
int s2n_cert_chain_and_key_free(struct s2n_cert_chain_and_key *chain);
int s2n_config_add_cert_chain_and_key_to_store(
    struct s2n_config *config, struct s2n_cert_chain_and_key *chain);

struct s2n_connection *s2n_connection_new(int mode);
int s2n_connection_free(struct s2n_connection *conn);
int s2n_connection_set_config(struct s2n_connection *conn, struct s2n_config *config);
int s2n_connection_set_fd(struct s2n_connection *conn, int fd);
int s2n_connection_set_blinding(struct s2n_connection *conn, int blinding);
uint64_t s2n_connection_get_delay(struct s2n_connection *conn);
int s2n_connection_set_dynamic_buffers(struct s2n_connection *conn, bool enabled);
int s2n_connection_prefer_throughput(struct s2n_connection *conn);
int s2n_connection_set_recv_buffering(struct s2n_connection *conn, bool enabled);
uint32_t s2n_peek_buffered(struct s2n_connection *conn);
int s2n_connection_free_handshake(struct s2n_connection *conn);
int s2n_connection_get_actual_protocol_version(struct s2n_connection *conn);
int s2n_connection_is_session_resumed(struct s2n_connection *conn);
const char *s2n_connection_get_cipher(struct s2n_connection *conn);
int s2n_connection_get_key_exchange_group(struct s2n_connection *conn, const char **group);
int s2n_connection_get_signature_scheme(struct s2n_connection *conn, const char **scheme);
struct s2n_cert_chain_and_key *s2n_connection_get_selected_cert(struct s2n_connection *conn);
int s2n_connection_get_client_cert_chain(
    struct s2n_connection *conn, uint8_t **chain, uint32_t *size);
int s2n_connection_get_peer_cert_chain(
    struct s2n_connection *conn, struct s2n_cert_chain_and_key *chain);
int s2n_cert_chain_get_length(struct s2n_cert_chain_and_key *chain, uint32_t *length);
int s2n_cert_chain_get_cert(
    struct s2n_cert_chain_and_key *chain, struct s2n_cert **cert, uint32_t index);
int s2n_cert_get_der(struct s2n_cert *cert, const uint8_t **der, uint32_t *length);
const char *s2n_get_server_name(struct s2n_connection *conn);
const char *s2n_get_application_protocol(struct s2n_connection *conn);
int s2n_set_server_name(struct s2n_connection *conn, const char *server_name);
int s2n_connection_set_session(
    struct s2n_connection *conn, const uint8_t *session, size_t size);

int s2n_negotiate(struct s2n_connection *conn, int *blocked);
ssize_t s2n_send(struct s2n_connection *conn, const void *data, ssize_t size, int *blocked);
ssize_t s2n_recv(struct s2n_connection *conn, void *data, ssize_t size, int *blocked);
int s2n_shutdown_send(struct s2n_connection *conn, int *blocked);

int s2n_async_pkey_op_get_op_type(struct s2n_async_pkey_op *op, int *type);
int s2n_async_pkey_op_get_input_size(struct s2n_async_pkey_op *op, uint32_t *size);
int s2n_async_pkey_op_get_input(struct s2n_async_pkey_op *op, uint8_t *data, uint32_t size);
int s2n_async_pkey_op_set_output(struct s2n_async_pkey_op *op, const uint8_t *data, uint32_t size);
int s2n_async_pkey_op_apply(struct s2n_async_pkey_op *op, struct s2n_connection *conn);
int s2n_async_pkey_op_free(struct s2n_async_pkey_op *op);

int s2n_connection_get_negotiated_psk_identity(
    struct s2n_connection *conn, uint8_t *identity, uint16_t most);
struct s2n_client_hello *s2n_connection_get_client_hello(struct s2n_connection *conn);
struct s2n_client_hello *s2n_client_hello_parse_message(const uint8_t *bytes, uint32_t size);
ssize_t s2n_client_hello_get_extension_length(struct s2n_client_hello *hello, int extension);
ssize_t s2n_client_hello_get_extension_by_id(
    struct s2n_client_hello *hello, int extension, uint8_t *out, uint32_t most);
int s2n_client_hello_free(struct s2n_client_hello **hello);
"""

OK, FAILURE = 0, -1
"""S2N_SUCCESS, S2N_FAILURE."""

MODE_SERVER, MODE_CLIENT = 0, 1
"""s2n_mode."""

ERR_T_OK, ERR_T_IO, ERR_T_CLOSED, ERR_T_BLOCKED, ERR_T_ALERT, ERR_T_PROTO, ERR_T_INTERNAL, ERR_T_USAGE = (
    range(8)
)
"""s2n_error_type."""

NOT_BLOCKED, BLOCKED_ON_READ, BLOCKED_ON_WRITE, BLOCKED_ON_APPLICATION_INPUT, BLOCKED_ON_EARLY_DATA = range(5)
"""s2n_blocked_status."""

CERTIFICATE_REQUIRED, CERTIFICATE_OPTIONAL = 1, 2
"""s2n_cert_auth_type."""

SELF_SERVICE_BLINDING = 1
"""s2n_blinding."""

ASYNC_DECRYPT, ASYNC_SIGN = 0, 1
"""s2n_async_pkey_op_type."""

TICKET_VERSION_SIZE, TICKET_KEY_NAME_SIZE = 1, 16
"""What a ticket of s2n-tls begins with (S2N_TICKET_VERSION_SIZE, S2N_TICKET_KEY_NAME_LEN)."""

EXTENSION_SIGNATURE_ALGORITHMS = 13
EXTENSION_SESSION_TICKET = 35
EXTENSION_PRE_SHARED_KEY = 41
"""s2n_tls_extension_type."""

PROTOCOL_VERSIONS = {31: "TLSv1", 32: "TLSv1.1", 33: "TLSv1.2", 34: "TLSv1.3"}
"""S2N_TLS10 … S2N_TLS13."""
