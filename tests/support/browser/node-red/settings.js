// Nothing that asks the internet or greets a first user: the tests' nodes have neither.
module.exports = {
    uiPort: Number(process.env.PORT),
    uiHost: process.env.HOST || "127.0.0.1",
    flowFile: "flows.json",
    credentialSecret: false,
    telemetry: { enabled: false, updateNotification: false },
    diagnostics: { enabled: false },
    runtimeState: { enabled: false },
    logging: { console: { level: "info", metrics: false, audit: false } },
    editorTheme: { tours: false, palette: { catalogues: [] }, projects: { enabled: false } },
};
